"""Patches for models of other packages. Import the one for your package:
``from fastops.integrations import transformers``."""
