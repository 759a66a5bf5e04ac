"""A model whose loss at each step is known beforehand."""

import keras
import numpy as np

from kerora.training.callbacks import StepCallbacks

# One weight w, from 1; the loss is w * x; its gradient x = 1; the rate 0.25 unless it is set.
LOSSES = [1.0, 0.75, 0.5, 0.25, 0.0]


class LatestLoss(keras.metrics.Metric):
    """Hands out its own variable, as metrics may."""

    def __init__(self):
        super().__init__(name="step_loss")
        self.latest = self.add_variable((), initializer="zeros")

    def update_state(self, y_true, y_pred, sample_weight=None):
        self.latest.assign(keras.ops.mean(y_pred))

    def result(self):
        return self.latest.value


def fit_counting(callbacks, steps, epochs=1):
    layer = keras.layers.Dense(1, use_bias=False, kernel_initializer="ones")
    net = keras.Sequential([keras.Input((1,)), layer])
    net.compile(
        optimizer=keras.optimizers.SGD(0.25),
        loss=lambda y_true, y_pred: keras.ops.mean(y_pred),
        metrics=[LatestLoss()],
    )
    ones = np.ones((steps, 1), "float32")
    net.fit(
        ones, ones, batch_size=1, epochs=epochs, shuffle=False,
        callbacks=StepCallbacks(callbacks, net),
    )  # fmt: skip
    return net
