"""The scikit-learn face: classifier, regressor, feature selection."""
