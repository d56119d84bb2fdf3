"""How fast ``pack`` takes images in, beside the decoders alone and beside other ways."""
