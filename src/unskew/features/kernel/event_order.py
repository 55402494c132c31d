"""The order of events, as tuples of words: by effective time, then by arrival, then by partition and offset."""

from unskew.features.jit import inlined
from unskew.features.kernel import words as w


@inlined()
def event_of(batch, event):
    """Return an event of a batch; the later of two events is the greater tuple."""
    return batch.effective[event], batch.arrival[event], batch.partition[event], batch.offset[event]


@inlined()
def load_event(cells, cell, word):
    """Return the event that a cell holds from ``word`` on."""
    return (
        cells[cell, word + w.EFFECTIVE],
        cells[cell, word + w.ARRIVAL],
        cells[cell, word + w.PARTITION],
        cells[cell, word + w.OFFSET],
    )


@inlined()
def store_event(cells, cell, word, event):
    """Write an event into a cell."""
    effective, arrival, partition, offset = event
    cells[cell, word + w.EFFECTIVE] = effective
    cells[cell, word + w.ARRIVAL] = arrival
    cells[cell, word + w.PARTITION] = partition
    cells[cell, word + w.OFFSET] = offset
