"""Networks: a ResNet, the heads of the frameworks, and the pair of networks that both stages train."""
