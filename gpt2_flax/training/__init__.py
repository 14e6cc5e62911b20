"""From a config to a trained model: config -> mesh -> state -> step -> loop."""
