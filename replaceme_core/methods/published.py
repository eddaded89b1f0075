"""`least_squares` as it was published, so that a comparison needs one code base only (see `modeling/published.py`)."""

from replaceme_core.methods.cuts import pruning, require_rank, runs
from replaceme_core.methods.protocol import Pruning, Task
from replaceme_core.methods.published_fit import last_token_distances, published_map
from replaceme_core.models.cut import windows
from replaceme_core.runner.messages import Stage
from replaceme_core.selection.choose import Candidate


def least_squares_as_published(task: Task) -> Pruning:
    """The named blocks, or the window that the last token of each sequence chooses; `ridge` is 0 unless given."""
    require_rank(task)
    method = task.spec.method
    if task.spec.drop is not None:
        cuts = runs(task.spec.drop)
        candidates = [Candidate(start=cut.start, end=cut.end, ridge=method.ridge, chosen=True) for cut in cuts]
    else:
        found = last_token_distances(task.activations, windows(len(task.block_runner.blocks), task.remove))
        task.clock.begin(Stage.SELECT)
        cuts = [min(found, key=lambda cut: found[cut])]
        candidates = [
            Candidate(start=cut.start, end=cut.end, distance=distance, chosen=cut in cuts)
            for cut, distance in found.items()
        ]
    task.clock.begin(Stage.SOLVE)
    ridge = 0.0 if method.ridge is None else method.ridge
    return pruning([published_map(task.activations, cut, ridge=ridge) for cut in cuts], candidates)
