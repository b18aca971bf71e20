"""UserError: one line, and it can be pickled between processes."""

import pickle

from uniavgen.shards.errors import Stopped, UserError


def test_message_has_what_where_and_hint_in_one_line() -> None:
    error = UserError("no sound\ntrack", where="a.mp4", hint="choose another file")
    assert str(error) == "no sound track (a.mp4); choose another file"


def test_user_error_can_be_pickled() -> None:
    error = pickle.loads(pickle.dumps(UserError("what", where="here", hint="that", kind="slug")))
    assert (str(error), error.kind) == ("what (here); that", "slug")


def test_exit_code_of_stopped_can_be_pickled() -> None:
    error = pickle.loads(pickle.dumps(Stopped("stopped", code=143)))
    assert (type(error), str(error), error.kind, error.code) == (Stopped, "stopped", "stopped", 143)
