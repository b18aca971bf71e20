"""What people see: console text, progress, tables, the ablation page, video files."""
