"""The rules of the recurrent layers: one layer in one direction of time, with backpropagation through time.

x are the inputs, h the hidden states, c the cells; W weighs x, U the hidden state of the time before, V projects it.
"""

from typing import TYPE_CHECKING

from torch_manualbp.rules.recurrent import gru, lstm, rnn
from torch_manualbp.rules.recurrent.gru import *  # noqa: F403
from torch_manualbp.rules.recurrent.lstm import *  # noqa: F403
from torch_manualbp.rules.recurrent.rnn import *  # noqa: F403

if not TYPE_CHECKING:  # which reads no sums, and takes what comes by * for exported
    __all__ = gru.__all__ + lstm.__all__ + rnn.__all__
