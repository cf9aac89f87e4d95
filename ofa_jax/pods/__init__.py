"""What a pod will do, known before a chip is rented: topologies, the compiled step, its collectives, a roofline."""
