"""What every target language shares: parameters, scalar expressions, statements over a block of rows, operands."""
