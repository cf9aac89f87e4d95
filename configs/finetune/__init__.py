"""Fine-tuning: one downstream task a file, from a pretrained run (`recipes/finetuning`)."""
