"""Errors of Python and TensorFlow become one line, without importing TensorFlow for it."""

import errno
import os
import subprocess
import sys

import pytest
import tensorflow as tf

from hqc_tf.errors import UserError, naming_a_full_disk, naming_damage, printable


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_tensorflows_errors_of_a_full_disk_are_recognized(number):
    said = "{{function_node x}} /a/ckpt-5; " + os.strerror(number) + " [Op:SaveV2]\nmore"
    with pytest.raises(UserError) as ended, naming_a_full_disk("runs/a"):
        raise tf.errors.ResourceExhaustedError(None, None, said)
    assert str(ended.value).startswith("runs/a: the disk is full (/a/ckpt-5; ")
    assert "more)" not in str(ended.value)


def test_a_full_accelerator_is_not_a_full_disk():
    error = tf.errors.ResourceExhaustedError(None, None, "OOM when allocating tensor")
    with pytest.raises(tf.errors.ResourceExhaustedError), naming_a_full_disk("runs/a"):
        raise error


def test_damage_found_by_tensorflow_is_named():
    match = "a.pb: cannot be read .bad magic.; restore it"
    with pytest.raises(UserError, match=match), naming_damage("a.pb", "restore it"):
        raise tf.errors.DataLossError(None, None, "{{node x}} bad magic\nmore")


def test_a_long_reason_is_cut():
    with pytest.raises(UserError) as caught, naming_damage("net", "restore a copy"):
        raise ValueError(1000 * "x")
    assert str(caught.value) == f"net: cannot be read ({300 * 'x'}...); restore a copy"


def test_another_error_passes():
    with pytest.raises(KeyboardInterrupt), naming_damage("a.pb", "restore it"):
        raise KeyboardInterrupt


def test_a_users_error_is_not_wrapped():
    with pytest.raises(UserError, match="^--a=1: too small; raise it$"), naming_damage("a", "b"):
        raise UserError("--a=1: too small; raise it")


def test_a_name_shows_every_character():
    assert printable("a\n\x1b[31m\udcff\u00e9") == r"a\n\x1b[31m\udcff\u00e9".replace(
        r"\u00e9", "\u00e9"
    )


def test_nothing_imports_tensorflow_to_name_an_error():
    program = """
import sys
from hqc_tf import commands, config, files
from hqc_tf.errors import UserError, naming_damage
try:
    with naming_damage("a", "fix it"):
        raise OSError("gone")
except UserError as error:
    print(error, "tensorflow" in sys.modules, sys.argv)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout == "a: cannot be read (gone); fix it False ['-c']\n", done.stderr
