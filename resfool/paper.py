"""What the paper states: its settings and its printed results, each with its place in the text.

Di Wu and Samuel Huberman, "ResNets: Easy to train, easy to fool?".
"""

DEPTHS = (10, 25, 50)  # section VII (10) and section IV.B (25 and 50)
STAGES = 5  # section IV.B: "repeated for 5 times"
WIDTH = 64  # section IV.B: "64 hidden neurons each"
BATCH_SIZE = 64  # section IV.C
LEARNING_RATE = 0.001  # section IV.C
STEPS = 10_000  # Table I
LONG_STEPS = 50_000  # Table II
LONG_LR_DROP = 32_000  # Figure 6: the rate is divided by 10 after these steps
AVERAGED_STEPS = 100  # Figure 3: "Average training accuracy of every 100-steps is reported"

MLP_LAYERS = 5  # section VI.C: "a five layer, hundred node, fully connected network"
MLP_WIDTH = 100
MNIST_PER_CLASS = (500, 50, 50)  # section VI.C: training, validation, test

# Table I: (train accuracy, test accuracy) on CIFAR-10 after 10,000 steps.
TABLE_1 = {
    ("convnet", 25): (0.8638, 0.8105),
    ("convnet", 50): (0.2348, 0.2285),
    ("resnet", 25): (0.9203, 0.8420),
    ("resnet", 50): (0.9347, 0.8445),
    ("highway", 25): (0.9398, 0.8075),
    ("highway", 50): (0.9122, 0.7859),
    ("multiresnet", 25): (0.9175, 0.8305),
    ("multiresnet", 50): (0.9274, 0.8584),
}

# Table II: the same for 25 layers after 50,000 steps.
TABLE_2 = {
    ("convnet", 25): (0.9786, 0.8480),
    ("resnet", 25): (0.9871, 0.8596),
    ("multiresnet", 25): (0.9887, 0.8610),
    ("highway", 25): (0.9827, 0.8038),
}
