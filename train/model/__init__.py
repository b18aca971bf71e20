"""The model as modules: backbones, interaction, face-aware modulation."""
