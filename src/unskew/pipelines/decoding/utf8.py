"""Whether bytes are UTF-8, for compiled code."""

import numpy as np
import numpy.typing as npt

from unskew.features.jit import compiled


@compiled()
def is_utf8(data: npt.NDArray[np.uint8], at: int, end: int) -> bool:
    """Return true if the bytes are UTF-8 by Unicode table 3-7: no overlong forms, no surrogates, at most U+10FFFF."""
    while at < end:
        lead = data[at]
        at += 1
        if lead < 0x80:
            continue
        low, high = 0x80, 0xBF
        if 0xC2 <= lead <= 0xDF:
            n_more = 1
        elif 0xE0 <= lead <= 0xEF:
            n_more = 2
            if lead == 0xE0:
                low = 0xA0
            elif lead == 0xED:
                high = 0x9F
        elif 0xF0 <= lead <= 0xF4:
            n_more = 3
            if lead == 0xF0:
                low = 0x90
            elif lead == 0xF4:
                high = 0x8F
        else:
            return False
        if at + n_more > end or data[at] < low or data[at] > high:
            return False
        for more in range(1, n_more):
            if data[at + more] < 0x80 or data[at + more] > 0xBF:
                return False
        at += n_more
    return True
