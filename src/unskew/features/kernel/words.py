"""Names of numbers: what the kernel's tables, rows and cells hold at which place.

Compiled functions take them in as constants of this module, ``w.TILE_NUMBER``.
"""

import numpy as np

NONE = -1
NEVER = np.int64(-(2**63))
FOREVER = np.int64(2**63 - 1)

# Kinds of windows. FIXED is a grid whose tiles count from their first event until they leave; tiles of a CLOSED one count from
# the end of their period; EVERY is a grid whose values change at every hop.
FIXED, CALENDAR, CLOSED, LIFETIME, SESSION, EVERY = range(6)

# Kinds of numbers: integers as they are, bits of a float64, row of a text in the state's directory of texts.
INTEGER, FLOAT, TEXT = range(3)

# Accumulators. A cell (a tile, or the running total of an entity and window) is a row of int64 words. COUNT and SUM come
# first, as they are the most frequent.
COUNT = 0  # 1 word: rows that pass (value -1), or non-null values
SUM = 1  # 3 words: limbs of an exact sum
MIN = 2  # 1 word: in comparable form, meaningful where the count beside it is > 0
MAX = 3
LAST = 4  # 5 words: effective, arrival, partition, offset, value
FIRST = 5
SQUARES = 6  # 5 words: limbs of an exact sum of squares
BUCKETS = 7  # a count for each bucket of a histogram
BAG = 8  # 2 words: the first of its items, how many there are
LAST_N = 9  # 2 words: as BAG, items of a tile only, the latest first
FIRST_N = 10  # the earliest first
OPENED = 11  # 7 words, of a session: whether it has begun, its least tile number, and as LAST its latest event
ACCUMULATOR_WORDS = {
    COUNT: 1, SUM: 3, MIN: 1, MAX: 1, LAST: 5, FIRST: 5, SQUARES: 5, BAG: 2, LAST_N: 2, FIRST_N: 2, OPENED: 7,
}  # fmt: skip

# How a feature is read.
(
    READ_COUNT, READ_SUM, READ_MEAN, READ_VALUE, READ_VAR, READ_STD, READ_DISTINCT, READ_APPROX, READ_MODE, READ_TOP,
    READ_BUCKETS, READ_QUANTILE, READ_LIST, READ_DECAYED_COUNT, READ_DECAYED_SUM, READ_MAP_COUNT, READ_MAP_SUM, READ_MAP_MEAN,
) = range(18)  # fmt: skip
ZERO_WHEN_EMPTY = (READ_COUNT, READ_SUM, READ_DISTINCT, READ_APPROX, READ_DECAYED_COUNT, READ_DECAYED_SUM)

# Columns of a program's tables: accumulators, features, windows.
A_WINDOW, A_OP, A_FILTER, A_VALUE, A_KIND, A_WORD, A_COUNT_WORD, A_BY, A_SIZE = range(9)
F_READ, F_COUNT_WORD, F_WORD, F_KIND, F_OUT, F_SIZE, F_WINDOW, F_CONSTANT, F_BITS, F_OP, F_ACCUMULATOR = range(11)
W_KIND, W_HOP, W_SPAN, W_TABLE, W_TABLE_END, W_RING, W_RING_SIZE, W_FIRST, W_END, W_ENDS, W_TOTAL, W_OPENED = range(12)

# Scalars of a state.
(
    S_CLOCK, S_NEXT_HOP, S_TOUCHED, S_DIRTY, S_DEAD, S_TILE_HIGH, S_TILE_FREE, S_TILES, S_ITEM_HIGH, S_ITEM_FREE, S_ITEMS,
    S_CLOSINGS,
) = range(12)  # fmt: skip
N_SCALARS = 12

# Columns of an entity's row; after the values come two words per window for its oldest and newest tile, and per window
# ``n_words`` for its running total.
ENTITY_LIVE, ENTITY_SLOT, ENTITY_MARKS, ENTITY_CHANGED, ENTITY_PRESENT, ENTITY_VALUES = range(6)
MARK_DIRTY, MARK_DEAD = 1, 2

# Columns of ``touched``: the entity row, its causes, and the last event applied at the open instant.
T_ROW, T_CAUSE, T_EVENT_TIME, T_PARTITION, T_OFFSET = range(5)
CAUSE_HOP, CAUSE_EVENT = 1, 2

# Columns of ``tiles``: its number, its neighbours in its entity's list, the next in its bucket, its entity row and
# window, and from there on its accumulators.
TILE_NUMBER, TILE_NEXT, TILE_PREVIOUS, TILE_BUCKET, TILE_ROW, TILE_WINDOW, TILE_WORDS = range(7)

# Columns of ``items``: its neighbours in its cell's list (the free ones hang together by ITEM_NEXT), the next in its slot of the
# table, whose it is, its code (a number), how often it is there, and from there on the limbs of a sum, or the effective time,
# arrival, partition and offset of an event.
ITEM_NEXT, ITEM_PREVIOUS, ITEM_CHAIN, ITEM_OWNER, ITEM_CODE, ITEM_COUNT, ITEM_WORDS = range(7)
N_ITEM_WORDS = 4

# Columns of ``closings``: sessions that are over.
C_ROW, C_INSTANT, C_PARTITION, C_OFFSET, C_PRESENT, C_VALUES = range(6)

# In a map, the key under which all the rest stands together.
OTHER_KEY = -1

# Counts of ranks in ``ranks``, before the ranks of the registers: from 0 to 65.
N_RANKS = 66
