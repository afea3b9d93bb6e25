"""Reports: the page, the ablation table, the user study."""
