"""What a model in service is watched with: the prediction log, drift, a challenger's shadow, and what users say."""
