"""Types of the messages in a bag, which says itself what they are."""

from __future__ import annotations

from rosbags.interfaces import Connection, MessageDefinitionFormat
from rosbags.typesys import Stores, get_types_from_idl, get_types_from_msg, get_typestore
from rosbags.typesys.store import Typestore

from v2r_core.label.messages import label_types

_IDL_RULE = "=" * 80 + "\n"


def types_of(connection: Connection) -> Typestore:
    """The types of a connection as the bag defines them; those of Jazzy and ours where it does not say."""
    text = connection.msgdef.data
    if connection.msgdef.format is MessageDefinitionFormat.NONE or not text:
        return label_types()
    store = get_typestore(Stores.EMPTY)
    if connection.msgdef.format is MessageDefinitionFormat.MSG:
        store.register(get_types_from_msg(text, connection.msgtype))
    else:
        parts = text.split(_IDL_RULE)[1:] if text.startswith(_IDL_RULE) else [f"\n{text}"]
        for part in parts:  # each begins with a line that names it
            store.register(get_types_from_idl(part.split("\n", 1)[1]))
    return store
