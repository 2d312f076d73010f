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

# Section VI.C: accuracies of the 5-layer network.
MNIST_TRAIN_ACCURACY = 0.93
MNIST_TEST_ACCURACY = 0.91
UNIVERSAL_FOOLING_RATE = 0.80  # section VIII: "a fooling rate greater than 80%"

# What each result shows, by the name that a reproduction knows it by.
RESULTS = {
    "table1": ("Table I", "Training and test accuracies on CIFAR-10 after 10,000 steps"),
    "table2": ("Table II", "Training and test accuracies on CIFAR-10 after 50,000 steps"),
    "table3": ("Table III", "Adversarial examples of the 10-layer ResNet"),
    "figure3": ("Figure 3", "ResNet against ConvNet"),
    "figure4": ("Figure 4", "HighwayNet against ResNet"),
    "figure5": ("Figure 5", "MultiResNet against ResNet"),
    "figure6": ("Figure 6", "50,000 steps of the 25-layer networks"),
    "figure7": ("Figure 7", "Fooling rate and singular values for the 5-layer network"),
    "figure8": ("Figure 8", "The universal perturbation of Algorithm 2"),
    "figure9": ("Figure 9", "Digits perturbed with the vector of Figure 8"),
    "figure10": ("Figure 10", "Digits perturbed with a random vector"),
    "figure11": ("Figure 11", "Fooling rate and singular values for the 10-layer networks"),
}

# What the paper concludes from them, by the name of the rule that looks for it, with the section.
CLAIMS = {
    "convnet_degrades": ("V.A", "The 50-layer ConvNet trains worse than the 25-layer one"),
    "resnet_trains_deeper": ("V.A", "The 50-layer ResNet trains better than the 25-layer one"),
    "resnet_tests_deeper": ("V.A", "The 50-layer ResNet tests better than the 25-layer one"),
    "resnet_beats_convnet": ("Table I", "ResNet tests better than ConvNet at equal depth"),
    "resnet_is_faster": ("V.A", "ResNet converges faster than ConvNet early in training"),
    "resnet_adds_nothing": ("V.A", "ResNet has no more parameters than ConvNet"),
    "highway_trains_deep": ("V.B", "Unlike the ConvNet, HighwayNet still trains with 50 layers"),
    "highway_overfits": ("V.B", "HighwayNet fits more than ResNet, yet tests worse (25 layers)"),
    "highway_degrades": ("V.B", "The 50-layer HighwayNet trains and tests worse than 25 layers"),
    "multiresnet_deeper": ("V.C", "The 50-layer MultiResNet tests better than the 25-layer one"),
    "multiresnet_best": ("V.C", "The 50-layer MultiResNet tests better than the ResNet"),
    "multiresnet_generalises": (
        "V.C",
        "MultiResNet overfits less than ResNet: more test over training accuracy (50 layers)",
    ),
    "long_order": ("Table II", "After 50,000 steps MultiResNet tests best and HighwayNet worst"),
    "universal_beats_noise": (
        "VI.C",
        "With enough singular vectors, Algorithm 2 fools more than a random vector",
    ),
    "universal_fools": ("VIII", "One universal perturbation fools more than 80% of the digits"),
    "spectrum_falls": (
        "VI.C",
        "The singular values of smallest perturbations fall faster than a random matrix's",
    ),
    "multiresnet_fooled": ("VII", "MultiResNet is the most easily fooled of the 10-layer networks"),
    "others_alike": ("VII", "ConvNet and ResNet are fooled alike"),
    "signs_spectrum": ("VII", "The spectrum of gradient signs falls faster than a random matrix's"),
    "invisible_fooling": ("VII", "Perturbations too small to see change predictions"),
}
