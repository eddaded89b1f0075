"""Every method by its name. A new method is one file, one row here and one member of `spec.Method`."""

from replaceme_core.methods.auto import auto
from replaceme_core.methods.block_influence import block_influence
from replaceme_core.methods.cosine.method import cosine
from replaceme_core.methods.drop import drop
from replaceme_core.methods.least_squares import least_squares
from replaceme_core.methods.merge import merge
from replaceme_core.methods.perplexity_greedy import perplexity_greedy
from replaceme_core.methods.protocol import PruningMethod
from replaceme_core.methods.refit.method import refit
from replaceme_core.spec import Method

METHODS: dict[Method, PruningMethod] = {
    Method.LEAST_SQUARES: least_squares,
    Method.COSINE: cosine,
    Method.DROP: drop,
    Method.REFIT: refit,
    Method.AUTO: auto,
    Method.BLOCK_INFLUENCE: block_influence,
    Method.PERPLEXITY_GREEDY: perplexity_greedy,
    Method.MERGE: merge,
}
