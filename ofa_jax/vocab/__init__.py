"""One id space for text pieces, image codes and location bins: tokenisers, layout, boxes as bins."""
