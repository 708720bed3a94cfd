"""What is taken comes back as it was."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as some

from pippin.core.backend import mx
from pippin.core.runner.upload import Upload

_DTYPES = st.sampled_from([np.int32, np.uint32, np.bool_])
_SHAPES = some.array_shapes(min_dims=1, max_dims=3, min_side=0, max_side=5)


@given(st.lists(some.arrays(_DTYPES, _SHAPES), max_size=6))
def test_arrays_keep_their_type_shape_and_numbers(arrays: list[np.ndarray[Any, Any]]) -> None:
    upload = Upload()
    sent = [upload.add(array) for array in [np.arange(3, dtype=np.int32), *arrays]][1:]
    upload.send()

    for array, get in zip(arrays, sent, strict=True):
        got = get()
        assert np.array(got).dtype == array.dtype
        assert np.array_equal(np.array(got), array)


def test_strided_arrays_are_sent_in_their_order() -> None:
    upload = Upload()
    get = upload.add(np.arange(12, dtype=np.uint32).reshape(3, 4).T)
    upload.send()

    assert np.array(get()).tolist() == np.arange(12).reshape(3, 4).T.tolist()


def test_words_are_sent_as_one_array(monkeypatch: pytest.MonkeyPatch) -> None:
    made = []
    monkeypatch.setattr(mx, "array", lambda data: made.append(data))
    upload = Upload()
    for size in (3, 1, 5):
        upload.add(np.zeros(size, np.int32))
    upload.send()

    assert [data.shape for data in made] == [(9,)]
