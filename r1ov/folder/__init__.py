"""Hugging Face folders in and out. The door is `r1ov.folder.pretrained`: `load` and `save` a model with its
processor; `resolve` a name to a folder, then `read_processor` and `read_model` one after the other.
"""
