"""`python -m trio_p2p` is `trio-p2p`."""

from trio_p2p.cli import main

if __name__ == "__main__":
    main()
