"""What a flag of Megatron-LM's GPT pretraining is here, if it is none of ours. No torch.

    flags.txt     the names of all its flags, recorded
    accepted.py   flags that ask for what is so here anyway, and other names of our flags: taken, with a line each
    refused.py    why there is no such flag here, and what to use

A flag with a name of ours is ours, and is read by the parser of the command.
"""
