"""The files of models as Hugging Face's hub has them."""
