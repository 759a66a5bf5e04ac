"""Training data: from files, lists and data sets to packed batches of tokens."""

from kerora.data.batches import Batches
from kerora.data.chat import ChatTemplate
from kerora.data.encoding import Encoded, Encoder
from kerora.data.errors import BadRow, DataError, RowProblem
from kerora.data.formats import Example, Message
from kerora.data.passthrough import check_token_data, is_token_data
from kerora.data.pipeline import make_batches
from kerora.data.report import DataReport
from kerora.data.sources import mix, open_source

__all__ = [
    "BadRow",
    "Batches",
    "ChatTemplate",
    "DataError",
    "DataReport",
    "Encoded",
    "Encoder",
    "Example",
    "Message",
    "RowProblem",
    "check_token_data",
    "is_token_data",
    "make_batches",
    "mix",
    "open_source",
]
