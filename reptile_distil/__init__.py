"""Knowledge distillation with a teacher that learns to teach."""
