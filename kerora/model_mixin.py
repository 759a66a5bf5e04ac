"""The base of the classes that give a Keras model kerora's methods."""

from typing import TYPE_CHECKING

# For a type checker a mixin is a Keras model. When it runs it is none: Keras
# rewrites the bases of subclasses of `keras.Model` while it builds functional models.
if TYPE_CHECKING:
    from keras import Model as ModelMixin
else:

    class ModelMixin:
        """Stands before the model's own class among the bases of the extended class."""


__all__ = ["ModelMixin"]
