"""The ops that touch image-sized tensors, one implementation per backend; `dispatch` picks it."""
