"""What a deployment carries: a model, and the costs that it is made of."""
