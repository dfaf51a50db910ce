"""Calls of every op with an element rule: values, types, odd sizes, negative axes and steps, broadcasting."""

from tests.compiler import element_arithmetic as arithmetic
from tests.compiler import element_places as places
from tests.compiler import element_sampling as sampling

FAMILIES = {
    "unary": arithmetic.unary,
    "binary": arithmetic.binary,
    "comparisons": arithmetic.comparisons,
    "choices": arithmetic.choices,
    "casts": arithmetic.casts,
    "views": places.views,
    "creation": places.creation,
    "indexing": places.indexing,
    "pooling": places.pooling,
    "reductions": places.reductions,
    "interpolation": sampling.interpolation,
    "grid sampling": sampling.grid_sampling,
}
