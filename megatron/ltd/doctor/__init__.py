"""Is this machine ready to train? ``python -m megatron.ltd.doctor`` looks and says what to do about what is not.

    __main__     what hides the package itself; then the checks below, a line each, and the exit status
    software     versions, requirements, packages that Megatron-Core would fail on
    hardware     devices, cores, shared memory
    processes    two processes that meet, add up and send
    layer        a layer on half of its tokens, against the same layer computed by hand

Each check is an iterator of ``finding.Finding``s. Nothing is changed, written or sent anywhere.
"""
