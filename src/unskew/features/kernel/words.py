"""Named numbers of the kernel: kinds and flags, columns of its tables and rows, words of its cells.

Imported as ``w``. numba compiles each as a constant into the functions that use it.
"""

import numpy as np

NONE = -1
NEVER = np.int64(-(2**63))
FOREVER = np.int64(2**63 - 1)

# Kinds of windows. FIXED is a grid whose tiles count from their first event until they leave; tiles of a CLOSED one
# count from the end of their period; EVERY is a grid whose values change at every hop.
FIXED, CALENDAR, CLOSED, LIFETIME, SESSION, EVERY = range(6)

# Kinds of numbers: an integer as it is, the bits of a float64, a text's row in the state's directory of texts, an
# event's effective time, of which a later tile has later ones.
INTEGER, FLOAT, TEXT, TIME = range(4)

# Accumulators. A cell (a tile, or the running total of an entity and window) is a row of int64 words. COUNT and SUM
# come first because they are the most frequent.
COUNT = 0  # 1 word: rows that pass (value -1), or non-null values
SUM = 1  # 3 words: limbs of an exact sum
MIN = 2  # 1 word: in comparable form, meaningful only if the count beside it is > 0
MAX = 3
LAST = 4  # 5 words: an event and its value, meaningful only if the count beside it is > 0
FIRST = 5
SQUARES = 6  # 5 words: limbs of an exact sum of squares, the lowest first
BUCKETS = 7  # a count for each bucket of a histogram
BAG = 8  # 2 words: its items
LAST_N = 9  # 2 words: as BAG, but only tiles have items, the latest event first
FIRST_N = 10  # as LAST_N, the earliest event first
OPENED = 11  # 7 words of a session: whether it has begun, its least tile number, and its latest event as in LAST
ACCUMULATOR_WORDS = {
    COUNT: 1, SUM: 3, MIN: 1, MAX: 1, LAST: 5, FIRST: 5, SQUARES: 5, BAG: 2, LAST_N: 2, FIRST_N: 2, OPENED: 7,
}  # fmt: skip

# Words of accumulators, counted from the first of each. SUM:
LOW, MID, HIGH = range(3)
# LAST and FIRST: an event's place in the order of events, then its value.
EFFECTIVE, ARRIVAL, PARTITION, OFFSET, VALUE, N_EVENT_WORDS = range(6)
# BAG, LAST_N and FIRST_N: the first item plus one, 0 for none; the number of items.
FIRST_ITEM, N_ITEMS = range(2)
# OPENED:
BEGUN, LEAST_NUMBER, LATEST_EVENT = range(3)

# Ways to read a feature.
(
    READ_COUNT, READ_SUM, READ_MEAN, READ_VALUE, READ_VAR, READ_STD, READ_DISTINCT, READ_APPROX, READ_MODE, READ_TOP,
    READ_BUCKETS, READ_QUANTILE, READ_LIST, READ_DECAYED_COUNT, READ_DECAYED_SUM, READ_MAP_COUNT, READ_MAP_SUM,
    READ_MAP_MEAN,
) = range(18)  # fmt: skip
ZERO_WHEN_EMPTY = (READ_COUNT, READ_SUM, READ_DISTINCT, READ_APPROX, READ_DECAYED_COUNT, READ_DECAYED_SUM)

# Columns of a program's accumulators.
(
    A_OP, A_FILTER, A_VALUE, A_KIND,  # its operation; the filter, the column of numbers and their kind
    A_WORD, A_COUNT_WORD,  # its first word in the cell; the word of the count beside it
    A_BY,  # the column of keys, for maps
    A_SIZE,  # number of buckets, or of events that it keeps
    A_TALLY,  # what is kept of its total beside the items (``tallies``): nothing, levels of bins, ranks, or a ranking
    N_A_COLUMNS,
) = range(10)  # fmt: skip

# Columns of a program's features. From F_SQUARES on they are meaningful only for the aggregations named.
(
    F_READ, F_KIND, F_SCALE,  # the way to read it; the kind of its numbers, and their digits after the decimal point
    F_WINDOW, F_OUT,  # its window; its first word in a row of values
    F_COUNT_WORD, F_WORD,  # in an entity's row: the word of the count, and the first word of the accumulator
    F_SQUARES, F_DDOF,  # var, std: in an entity's row, the first word of the sum of squares; degrees of freedom
    F_MOST_ITEMS,  # first_n, last_n, top_k, maps: number of items read at most
    F_LATEST,  # first_n, last_n: 1 if the latest come first
    F_BUCKETS,  # histogram: number of buckets
    F_QUANTILE, F_BIN_BITS,  # quantile: place of q in the constants; bits of mantissa that a bin keeps
    F_REGISTER_BITS,  # approx_count_distinct: bits that choose the register
    F_HALF_LIFE, F_DECAY,  # decayed_count, decayed_sum: half-life in hops; place of the first decay in the constants
    F_UNIT,  # decayed_sum of decimals: place of the number of units in 1 in the constants
    F_DECAYED,  # decayed_count, decayed_sum: in an entity's row, the first word of DECAYED_...
    F_ACCUMULATOR,  # what reads a tally: its accumulator
    F_HINTS, F_N_HINTS,  # top_k, maps: in an entity's row, the first of the items that were read last; their number
    N_F_COLUMNS,
) = range(23)  # fmt: skip

# Columns of a program's windows.
(
    W_KIND, W_HOP, W_SPAN,  # its kind; microseconds of a hop; whole tiles behind the running one
    W_TABLE, W_TABLE_END,  # its part of the calendars' table
    W_RING, W_RING_SIZE,  # its part of the ring
    W_FIRST, W_END,  # its accumulators
    W_OLDEST, W_NEWEST, W_TOTAL,  # in an entity's row: its oldest and its newest tile; the first word of its total
    W_OPENED,  # in a cell: the first word of OPENED
    N_W_COLUMNS,
) = range(14)  # fmt: skip

# Scalars of a state.
(
    S_CLOCK, S_NEXT_HOP, S_TOUCHED, S_DIRTY, S_DEAD, S_TILE_HIGH, S_TILE_FREE, S_TILES, S_ITEM_HIGH, S_ITEM_FREE,
    S_ITEMS, S_CLOSINGS,
    S_SPARE, S_LACKED,  # items for which there is room beyond what events may add; those that a tally lacked
    S_CHUNK_HIGH, S_CHUNK_FREE,
    S_ENTERED, S_SLOTS, S_SLOT_MASK,  # items in the table; its slots; the bits of a hash of which they are the numbers
    N_SCALARS,
) = range(20)  # fmt: skip

# Columns of an entity's row. After the values come, for each window, two words for its oldest and newest tile, and
# then, for each window, ``n_words`` for its running total, and last, for each feature, its hints or ``DECAYED_...``.
ENTITY_LIVE, ENTITY_SLOT, ENTITY_MARKS, ENTITY_CHANGED, ENTITY_PRESENT, ENTITY_VALUES = range(6)
MARK_DIRTY, MARK_DEAD = 1, 2
# The marks of windows that the open instant has touched: a bit for each, the last one for all windows from there on.
MARK_WINDOWS, N_WINDOW_MARKS = 4, 60
ALL_WINDOWS = ((1 << N_WINDOW_MARKS) - 1) * MARK_WINDOWS
# The entity has, or has had, a wedge (``wedges``).
MARK_WEDGE = 1 << 62

# What a reading of a decayed feature leaves for the next: the number of the present tile; a tile plus one, 0 for none;
# how many events those before it have, and their sum (float64 bits).
DECAYED_NOW, DECAYED_TILE, DECAYED_COUNT, DECAYED_SUM, DECAYED_WORDS = range(5)
# So many tiles are read again each time, because late events enter them.
DECAYED_AGAIN = 8

# Items of a feature that are prefetched at most, so that the row of a wide map does not grow by a word for each key.
MOST_HINTS = 16

# Words of a row that is put out, besides its values: the instant of its change, a bit for each value that is present;
# then, of a closed row, its causes and its last event; of a current row, when a tile next leaves, and when the last.
ROW_INSTANT, ROW_PRESENT, ROW_CAUSE, ROW_EVENT_TIME, ROW_PARTITION, ROW_OFFSET, N_ROW_WORDS = range(7)
ROW_UNTIL, ROW_EMPTY_AT = ROW_PRESENT + 1, ROW_PRESENT + 2

# Columns of ``touched``: the entity row, its causes, and the last event applied at the open instant.
T_ROW, T_CAUSE, T_EVENT_TIME, T_PARTITION, T_OFFSET, N_T_COLUMNS = range(6)
CAUSE_HOP, CAUSE_EVENT = 1, 2

# Columns of ``tiles``: a tile's number, two words of links, and then its accumulators.
TILE_NUMBER, TILE_LINKS, TILE_WORDS = 0, 1, 3
# Columns of ``links``, the same memory as numbers of 32 bits: a tile's neighbours in its entity's list, its entity row.
LINK_NEXT, LINK_PREVIOUS, LINK_ROW = range(2 * TILE_LINKS, 2 * TILE_LINKS + 3)
# Columns of ``chunks``, each of which is a cache line: the next chunk of its bucket or the next free one, the number of
# its tiles, and these.
CHUNK_NEXT, CHUNK_COUNT, CHUNK_TILES = range(3)
CHUNK_SIZE = 14

# Columns of ``items``, each of which is a cache line: two words of links, its owner, its code (a number), how often it
# occurs, and the limbs of a sum. An item of a list occurs once, and has an event's place in the order of events from
# the word of its count on.
ITEM_OWNER, ITEM_CODE, ITEM_COUNT, ITEM_LIMBS = range(2, 6)
ITEM_WORDS = 8
ITEM_EVENT = ITEM_COUNT
# Columns of ``item_links``, the same memory as numbers of 32 bits: an item's neighbours in its cell's list (ITEM_NEXT
# also links the free ones), the next one in its slot of the table, and for an item of a total's multiset 1 if it is
# ranked. A ranking has its last item there, and a wedge its first and last element, NONE if it has none.
ITEM_NEXT, ITEM_PREVIOUS, ITEM_CHAIN, ITEM_RANKED = range(4)
RANKING_LAST = ITEM_RANKED
WEDGE_FIRST, WEDGE_LAST = ITEM_NEXT, ITEM_PREVIOUS

# Columns of ``closings``: sessions that have closed.
C_ROW, C_INSTANT, C_PARTITION, C_OFFSET, C_PRESENT, C_VALUES = range(6)

# The key of a map that combines all other keys.
OTHER_KEY = -1

# The number of counts in ``ranks``, which come before the ranks of the registers: one for each rank from 0 to 65.
N_RANKS = 66

# A_TALLY of registers and ranks; that of a ranking is this one or less (``rankings``).
TALLY_RANKS, TALLY_RANKING = -1, -2
# A multiset gets a tally when it has more items than the first number, and keeps it
# until it has as few as the second. So has a ranking.
TALLY_FROM, TALLY_UNTIL = 64, 32
RANKING_FROM, RANKING_UNTIL = 8, 4
# A_TALLY of a ranking holds the kind of its codes in so many bits and, above them, how many are read. It keeps twice as
# many, and so many more.
RANKING_KIND_BITS, RANKING_SPARE = 2, 16

# A wedge begins when more tiles than these were read to find a least or greatest value.
WEDGE_FROM = 32
