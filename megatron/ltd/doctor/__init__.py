"""Is this machine ready to train? ``python -m megatron.ltd.doctor`` checks it and says how to fix what is wrong.

    __main__     packages that hide this one; then the checks below, one line each, and the exit status
    software     versions, requirements, packages that Megatron-Core would fail on
    hardware     devices, cores, shared memory
    processes    two processes that communicate
    layer        a layer on half of its tokens, compared with the dense layer on these tokens alone

Each check yields ``finding.Finding``s. The doctor changes and writes nothing, and sends nothing to other machines.
"""
