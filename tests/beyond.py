"""What the pack offers beyond the hosted endpoint's public page: names of parameters, and values of its choices."""

BEYOND = {
    "res_2s",
    "euler_ancestral",
    "windows",
    "timeline",
    "edit",
    "reference",
    "nag",
}
