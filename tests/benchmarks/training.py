"Learner.fit against a hand-written PyTorch loop over the same batches, with and without callbacks."
import torch
import torch.nn.functional as F
from torch import nn
from initnotes import AvgStats, Learner, Recorder, TensorLoader, accuracy, four_conv_net
from ratios import report

torch.set_num_threads(1)
x, y = torch.randn(2048, 1, 28, 28), torch.randint(10, (2048,))
nets = {'4-conv net, batch 128': four_conv_net(10),
        'hidden layer of 50, batch 128': nn.Sequential(nn.Flatten(), nn.Linear(784, 50), nn.ReLU(),
                                                       nn.Linear(50, 10))}

for name, model in nets.items():
    opt = torch.optim.SGD(model.parameters(), lr=.01)
    def bare():
        model.train()
        for i in torch.randperm(len(x)).split(128):
            F.cross_entropy(model(x[i]), y[i]).backward()
            opt.step()
            opt.zero_grad()
    learn = Learner(model, TensorLoader(x, y, 128, shuffle=True), None, F.cross_entropy, opt)
    report(f'Learner.fit, {name}', lambda: learn.fit(1), bare, 1.05, repeat=41)
    with_both = Learner(model, learn.train_dl, None, F.cross_entropy, opt,
                        [Recorder(), AvgStats(accuracy)])
    report(f'… with Recorder and AvgStats(accuracy)', lambda: with_both.fit(1), bare, 1.25,
           repeat=41)
