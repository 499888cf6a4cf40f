"""What RQ's workers run; apart from the front, so that they do not load Flask."""


def version():
    return '{"server":"arango","version":"1.4.3"}'
