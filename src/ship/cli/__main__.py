from ship.cli import main

main()
