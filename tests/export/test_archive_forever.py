"""Archives of version 1 as they were first written: every later release must read them.

Made with `python tests/export/test_archive_forever.py`, which prints them. Before the first release
of a version they may change with the format; afterwards a change here is a new version.
"""

from __future__ import annotations

import base64
import hashlib

import pytest
from archive_files import small_model

from export import archive_body
from export.archive import pack, unpack_bytes
from export.archive_body import Form

SHA256 = "f6e46c45b407e346d50f0963db7a31cc40423b988f7fd7eaff8318648e21e2b6"
"""Of the ONNX file in them."""

ARCHIVES = {
    Form.STREAM: (
        "k1QB3oB6V0J/6G7lq4xz8F+no3Q6juaB7bx+z5yis6OSrdpRLfq7Pll229SmO4QMbX8d41e0wVlorwB/ugHhhVKN"
        "CbU8130Ynldnf1xL8FaORUtzqxUQX9MMv+3RADkxQTiN7CdPA3E/J2lSio+d7sX3sKUkbQ7y9pmfxFrgGGYLxkHA"
        "9YA="
    ),
    Form.BLOCKS: (
        "k1RBQDBhVSVCf+hu5auMc/Bfp6N0Oo7mge28fs+corOjkq3aUS36uz5ZdtvT1gFMLoOAAjhRNf4R2HXWpzYTTxW3"
        "maUpUqXXTc/95j/O5ap7W2/pdaDMtbCOOe6tZmABBHAK3wAWmUxVxMWiCLZsUqRmibgOLIfCcE6QGQAIIAAAAADf"
        "1dY9bL8APv0iuT698iM/eemmP39GB76hIQm/ABRQNpRXPSivIT6ivIY+r6G8Pr2G8j7lNRQ/bCgvP/MaSj95DWU/"
        "AACAPzaUV70oryG+oryGvq+hvL69hvK+5TUUv2woL7/zGkq/eQ1lvwAAgL8AAhAUAAAAAAAAAP//////////"
    ),
    Form.LONG: (
        "k1SBta5IVgEsRSi1L/0gp+UBAJAICmNjeRQIBBABAhAHBAAAAAAOgCBx2yrbs7NC0VC0sC0qmIvQHhGxHc9liDto"
        "2aNnM6CXPLGADJCbUdYBTC6DgAI4UTX+Edh11qc2E08Vt5mlKVKl103P/eY/zuWqe1tv6XWgzLWwjjnurWZgAQRw"
        "Ct8AFplMVcTFogi2bFKkZom4DiyHwnBOkBkACCAAAAAA39XWPWy/AD79Irk+vfIjP3nppj9/Rge+oSEJvwAUUDaU"
        "Vz0oryE+oryGPq+hvD69hvI+5TUUP2woLz/zGko/eQ1lPwAAgD82lFe9KK8hvqK8hr6voby+vYbyvuU1FL9sKC+/"
        "8xpKv3kNZb8AAIC/AAIQFAAAAAAAAAD//////////w=="
    ),
    Form.WHOLE: (
        "k1TBl+j6Jii1L/1gZgH1CABCCywtYG8bUs4RK4wmSJjVRkQrgKOHjliKxb8QU8WpFGNUQ1IXOyEv73sJly3SJVrK"
        "giufgpNicf5GoRb7DNfn8LSAD+DM/IFE5tcNDd/ee2uttWOMdBi8CyE4Z/ThI0+IszhjzwtVTyAwPSS0uoUT+0ZK"
        "SAjOm+3kc5xMKV4fmg1aifvAGvvWeWTHSC3yXBIjheC81GaLlb7H1RMnzv4Lrz33UU/DlUv9ymX7zHzFU1TjbSwg"
        "UAaZMQt2NvhoeBcGRnnAMaBODgnGYseAfAB3B9gLIGeBewLYNSA/cDVAeQ2x5uK54dQLqAGTzgQpjX3hIMMWC9wc"
        "0eDBRTKTaRsXayRETEG0EoidyGkhElhczjUgUyRBsLjBQ79EUxaV"
    ),
}


@pytest.mark.parametrize("form", list(Form))
def test_archives_of_version_1_are_read(form):
    archive = base64.b64decode(ARCHIVES[form])
    assert archive[2] == 1 | form << 6
    assert hashlib.sha256(unpack_bytes(archive)).hexdigest() == SHA256


def made(form):
    """A small archive of any form, as if it held a large file."""
    model = small_model().SerializeToString()
    with pytest.MonkeyPatch.context() as patch:
        if form is not Form.STREAM:
            patch.setattr(archive_body, "_PATIENCE", 0)
            patch.setattr(archive_body, "_LONG_PATIENCE", 0)
        if form is Form.LONG:
            patch.setattr(archive_body, "_SHORT_FILE", 0)
        if form is Form.WHOLE:
            patch.setattr(archive_body.Plan, "of", lambda _: None)
        return model, pack(model)


if __name__ == "__main__":
    for form in Form:
        model, archive = made(form)
        print(form.name, hashlib.sha256(model).hexdigest(), base64.b64encode(archive).decode())
