"""The `.latent.npz` member."""

import io

import numpy as np
import pytest

from uniavgen.shards.errors import UserError
from uniavgen.shards.latents.cache import LatentSample


def test_pickled_latents_are_refused() -> None:
    out = io.BytesIO()
    np.savez(out, start=np.array([object()], dtype=object))
    with pytest.raises(UserError, match="latents of a are damaged") as caught:
        LatentSample.from_bytes(out.getvalue(), "a")
    assert caught.value.kind == "damaged-sample"
