"""One perturbation for all images: fitted, judged on others, applied elsewhere (section VI)."""
