"""The learning rates that are taken where nobody names one, for Adam and its like."""

# Five to eleven examples, as a default batch packs them, at the 5e-5 an example of KerasHub's LoRA
# guide. Full fine-tuning wants about a tenth (https://thinkingmachines.ai/blog/lora/).
ADAPTER_LEARNING_RATE = 5e-4
FULL_LEARNING_RATE = 2e-5
