"""curl's library with GnuTLS asks a server on one connection: ``VERSION URL...``.

The version is 1.1 or 2, of HTTP; fails unless it is the one that is spoken, and every answer good.
"""

from __future__ import annotations

import ctypes
import os
import sys
from typing import Final

# include/curl/curl.h
_URL: Final = 10002
_WRITEDATA: Final = 10001
_SSL_VERIFYPEER: Final = 64
_SSL_VERIFYHOST: Final = 81
_HTTP_VERSION: Final = 84
_TIMEOUT: Final = 13
_RESPONSE_CODE: Final = 0x200000 + 2
_INFO_HTTP_VERSION: Final = 0x200000 + 46
_VERSIONS: Final = {"1.1": (2, 2), "2": (4, 3)}
"""What is asked for (``CURL_HTTP_VERSION_1_1``, ``_2TLS``), and what is told of it."""


def main(version: str, urls: list[str]) -> None:
    """Ask for each URL in turn."""
    curl = ctypes.CDLL("libcurl-gnutls.so.4")
    libc = ctypes.CDLL(None)
    curl.curl_version.restype = ctypes.c_char_p
    assert b"GnuTLS" in curl.curl_version()
    for function in (curl.curl_easy_init, libc.fopen):
        function.restype = ctypes.c_void_p
    handle = ctypes.c_void_p(curl.curl_easy_init())
    nowhere = ctypes.c_void_p(libc.fopen(os.devnull.encode(), b"w"))
    asked, told = _VERSIONS[version]

    def set_option(option: int, value: ctypes.c_void_p | ctypes.c_char_p | ctypes.c_long) -> None:
        assert curl.curl_easy_setopt(handle, option, value) == 0

    def info(kind: int) -> int:
        value = ctypes.c_long()
        assert curl.curl_easy_getinfo(handle, kind, ctypes.byref(value)) == 0
        return value.value

    for option, number in (
        (_SSL_VERIFYPEER, 0),
        (_SSL_VERIFYHOST, 0),
        (_HTTP_VERSION, asked),
        (_TIMEOUT, 30),
    ):
        set_option(option, ctypes.c_long(number))
    set_option(_WRITEDATA, nowhere)
    for url in urls:
        set_option(_URL, ctypes.c_char_p(url.encode()))
        assert curl.curl_easy_perform(handle) == 0
        assert info(_INFO_HTTP_VERSION) == told
        assert 200 <= info(_RESPONSE_CODE) < 300
    curl.curl_easy_cleanup(handle)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
