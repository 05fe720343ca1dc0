"""Models: the CNN, pre-trained backbones, their processors, and the predictor that everything else calls."""
