"""The learning rates that are taken where nobody names one, for Adam and its like."""

# The 5e-5 of KerasHub's LoRA guide for each of the about ten examples that a default batch packs.
# Full fine-tuning wants a far lower one (https://thinkingmachines.ai/blog/lora/).
ADAPTER_LEARNING_RATE = 5e-4
FULL_LEARNING_RATE = 2e-5
