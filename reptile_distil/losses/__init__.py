"""What a student is compared with: the distillation loss on logits, and terms on hidden states."""
