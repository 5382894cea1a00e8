"""Primitives by what they do to the ends of a box: keep them, raise or lower them, add or multiply them."""

RISING = {
    "tanh",
    "logistic",
    "exp",
    "exp2",
    "log",
    "log1p",
    "expm1",
    "sqrt",
    "cbrt",
    "erf",
    "erf_inv",
    "asinh",
    "atan",
}
RISING |= {
    "sinh",
    "asin",
    "sign",
    "floor",
    "ceil",
    "round",
    "reduce_precision",
    "reduce_max",
    "reduce_min",
    "max",
    "min",
}
RISING |= {"reduce_window_max", "reduce_window_min", "reduce_window_sum", "reduce_sum", "cumsum", "cummax", "cummin"}
RISING |= {"add", "add_any", "clamp", "concatenate", "stack", "pad"}
LOGICAL = {"and", "or", "reduce_and", "reduce_or"}  # rising where they are of booleans, and of nothing else
RISING |= LOGICAL
SUMS = {"add", "add_any", "reduce_sum", "cumsum", "reduce_window_sum"}
SAFE = {"max", "min", "reduce_max", "reduce_min", "reduce_window_max", "reduce_window_min", "cummax", "cummin", "clamp"}
SAFE |= {"concatenate", "stack", "pad", "sort", "sign", "not", "select_n"}  # give no integer that was not there
SHAPES = {"reshape", "transpose", "broadcast_in_dim", "squeeze", "expand_dims", "slice", "rev", "copy", "copy_p"}
SHAPES |= {"jacreg_patches", "gather", "dynamic_slice", "stop_gradient", "split", "real", "device_put", "pvary"}
SHAPES |= {"tile", "unstack", "reshard"}
FALLING = {"neg", "erfc", "acos", "not"}
COMPARISONS = {"gt", "ge", "lt", "le"}
BILINEAR = {"dot_general", "conv_general_dilated", "jacreg_convolution", "jacreg_product"}
ELEMENTWISE = RISING - {
    "reduce_max",
    "reduce_min",
    "reduce_sum",
    "cumsum",
    "cummax",
    "cummin",
    "concatenate",
    "stack",
    "pad",
}
ELEMENTWISE -= {"reduce_window_max", "reduce_window_min", "reduce_window_sum", "reduce_and", "reduce_or"}
ELEMENTWISE |= {
    "neg",
    "erfc",
    "acos",
    "not",
    "sub",
    "mul",
    "div",
    "abs",
    "square",
    "integer_pow",
    "pow",
    "rsqrt",
    "copy",
}
ELEMENTWISE |= COMPARISONS | {"eq", "ne", "select_n", "convert_element_type", "broadcast_in_dim", "is_finite"}
