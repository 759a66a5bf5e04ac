"""What to write in place of a target that no layer is called."""

from __future__ import annotations

import difflib
from collections.abc import Sequence

# What `transformers`, and so PEFT, calls a layer, and what KerasHub's families do.
_KERAS_HUB_NAMES = {
    "q_proj": ("query", "query_dense", "query_key_value"),
    "k_proj": ("key", "key_dense", "query_key_value"),
    "v_proj": ("value", "value_dense", "query_key_value"),
    "o_proj": ("attention_output", "output_dense"),
    "gate_proj": ("feedforward_gate_dense", "ffw_gating"),
    "up_proj": ("feedforward_intermediate_dense", "ffw_gating_2"),
    "down_proj": ("feedforward_output_dense", "ffw_linear"),
    "embed_tokens": ("token_embedding",),
}


def target_hint(target: str, names: Sequence[str]) -> str:
    """A sentence that says which layer was meant, with a blank before it; empty if none is alike.

    Args:
        target: What no layer matches. Of a path of `transformers`' the last name counts.
        names: What the layers of the model are called.
    """
    meant = {peft: own for peft, owns in _KERAS_HUB_NAMES.items() for own in owns if own in names}
    meant |= {name: name for name in names}
    last = target.rpartition(".")[2]
    wanted = last if last in meant else target
    near = difflib.get_close_matches(wanted, list(meant), n=1)
    if not near:
        return ""
    own = meant[near[0]]
    if near[0] == wanted:
        return f" What PEFT calls '{wanted}' is '{own}' in this model."
    if near[0] == own:
        return f" Did you mean '{own}'?"
    return f" Did you mean PEFT's '{near[0]}'? It is '{own}' in this model."
