"""What the parts are made of: linear layers, dropout, stacking, the cache, flash."""
