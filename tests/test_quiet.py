"""Noise is dropped from standard error, everything else is passed on."""

import os

from kerora.quiet import quiet


def test_noise_is_dropped_and_the_rest_passed_on(capfd):
    with quiet():
        os.write(2, b"I0000 00:00:1795256332.559786    1830 cudart_stub.cc:31] Could not find\n")
        os.write(2, b"WARNING: All log messages before absl::InitializeLog() is called are\n")
        os.write(2, b"normalizer.cc(51) LOG(INFO) precompiled_charsmap is empty.\n")
        os.write(2, b"Downloading: 10%\rDownloading: 20%\r")
        os.write(2, b"E0000 00:00:1795256332.559786 1830 disk.cc:3] No space left\nno end")
    os.write(2, b"\nafter\n")
    assert capfd.readouterr().err.replace("\r", "\n").splitlines() == [
        "Downloading: 10%",
        "Downloading: 20%",
        "E0000 00:00:1795256332.559786 1830 disk.cc:3] No space left",
        "no end",
        "after",
    ]
